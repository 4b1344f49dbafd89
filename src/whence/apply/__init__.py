"""What people do with scores: each ends in something to act on."""
