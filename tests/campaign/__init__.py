"""Random networks, fused and checked, for as long as one likes; what fails is made small."""
