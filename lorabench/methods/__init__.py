"""One file a method; see lorabench.method for what a method is and how to add one."""
