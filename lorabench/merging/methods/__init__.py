"""One file a method; see lorabench.merging.method for what a method is and how to add one."""
