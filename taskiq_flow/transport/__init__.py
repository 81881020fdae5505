"""The systems that carry messages and notices. Only these files import the systems' clients."""
