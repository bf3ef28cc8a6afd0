"""Pictures of items from the web: resumable, with limits, never from a private address."""
