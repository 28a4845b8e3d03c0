"""Back ends that read what the core has measured, one small file each."""
