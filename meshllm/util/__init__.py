"""Small tools without an owner: threads, rate limits, formatting, atomic files."""
