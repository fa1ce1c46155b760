"""HTTP servers: the gateway (:9337) and the console API (:3131)."""
