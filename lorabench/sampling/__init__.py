"""The sampler, and the rules that change adapter scales and guidance while it runs."""
