"""Upstream's package for graphs from torch.export. Here it has only the runtime modules."""
