"""Other implementations of flash attention, which `bench --peer` times beside ours.

Nothing else needs them. ik_llama.cpp is fetched and built when it is asked for; torch is an extra.
"""
