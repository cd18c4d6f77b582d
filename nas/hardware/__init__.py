"""What an architecture costs: times measured on the device, sizes counted exactly."""
