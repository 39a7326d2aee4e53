"""Networks that were published in 3D, with their weights: MedicalNet, Merlin, Astra, inflated video networks, I3D.

They are written by their published layout, so that their checkpoints give here what they gave there. May import the
rest of ``models`` but what creates encoders by name.
"""
