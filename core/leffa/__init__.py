"""Leffa (arXiv 2412.08486): virtual try-on and pose transfer."""
