"""Text, boundaries, the sweep, local and global distillation; works on modules, tensors and iterators."""
