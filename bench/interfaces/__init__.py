"""What training hands to methods and networks, and what they owe it; nothing here depends on the rest."""
