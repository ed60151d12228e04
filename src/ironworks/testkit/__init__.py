"""What tests stand on: clocks and randomness they own, images they make, the platform in a test."""
