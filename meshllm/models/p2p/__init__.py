"""Model files between peers: download and seeding."""
