"""Any picture in, any size out: tiles, memory, partners to score against, the report page."""
