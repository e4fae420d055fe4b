"""The process that makes a save durable while training continues."""
