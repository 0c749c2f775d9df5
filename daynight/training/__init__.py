"""What a training loop borrows."""
