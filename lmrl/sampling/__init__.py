"""Drawing tokens: the specification, how responses end, and decode engines."""
