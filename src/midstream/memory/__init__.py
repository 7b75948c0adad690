"""What an agent remembers within a trajectory and across them."""
