"""The blackboard: a log of short messages per author, replicated over the mesh; its rules, claims and exchange."""
