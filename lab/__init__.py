"""The lab: the whole fleet on one machine."""
