"""How good a classifier is on held-out images, shown in numbers and in pictures, and which of two to take."""
