"""Networks that the published systems use and no library has."""
