# What Cap'n Proto's peer calls (call_capnp.cpp).
@0xd3a5f1c96b0e4871;

interface Calculator {
  add @0 (a :Int64, b :Int64) -> (sum :Int64);
}
