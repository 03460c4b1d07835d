"""What other programs call the same weights, where theirs are published, and ONNX."""
