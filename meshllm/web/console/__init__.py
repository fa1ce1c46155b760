"""The page and management API on port 3131."""
