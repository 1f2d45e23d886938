"""Views: rows as what an encoder reads, and back. Index maps and affine maps; no learned parameters."""
