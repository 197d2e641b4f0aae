"""Where stages live on disk: folders that `cat` can read, who owns them, and where a number came from."""
