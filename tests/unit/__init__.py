"""One file a module of the package, on the same path: no loop, or a virtual one."""
