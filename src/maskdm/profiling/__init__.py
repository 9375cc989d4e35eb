"""What training costs here: one step against the hardware, a whole run before it starts."""
