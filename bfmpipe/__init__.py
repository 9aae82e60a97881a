"""Fast adaptation of behavioural foundation models (Sikchi et al., arXiv 2504.07896)."""
