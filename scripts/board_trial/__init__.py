"""`scripts/board_trials`: real agents post to the blackboard and are told of a question, with a scripted model."""
