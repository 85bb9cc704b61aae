"""What upstream has for graphs that torch.export made; here its runtime modules."""
