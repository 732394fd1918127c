"""How each architecture learns: one file each, with what differs from `student`."""
