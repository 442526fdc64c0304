"""From answers to an explanation: what does it compute, and where does it leave the paper?"""
