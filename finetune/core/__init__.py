"""What the method scripts are composed of."""
