"""Programs made from published figures, where their traces are not to be had."""
