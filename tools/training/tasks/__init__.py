"""The methods as the loop sees them: from a user's files to batches, and from weights to files that nodes load."""
