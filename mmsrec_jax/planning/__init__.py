"""What a step costs on absent machines: compiles programs ahead of time and analyzes them."""
