"""The words of Midstream as types. Imports nothing of ours and never torch."""
