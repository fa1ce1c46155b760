"""What nodes send to each other: msgpack messages, records, invites, files."""
