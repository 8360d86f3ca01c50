"""Policies behind their servers, asked as robots ask them."""
