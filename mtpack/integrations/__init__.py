"""The loss in which every turn weighs the same, inside the trainers that people use."""
