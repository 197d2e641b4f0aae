"""Where data come from: packages at hand, downloads and archives, a user's own files."""
