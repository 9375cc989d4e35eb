"""What a user may set: schema, recipes, and how layers of settings are merged. No torch."""
