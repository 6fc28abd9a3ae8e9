"""What the end-to-end tests share: kubectl, model files on a web server, a load generator."""
