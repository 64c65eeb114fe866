"""The only training loop, its checkpoints, and models of one method trained as one computation."""
