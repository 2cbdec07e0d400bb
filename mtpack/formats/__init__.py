"""The accepted row formats: a raw row becomes a `Dialogue` or a `Reject`."""
