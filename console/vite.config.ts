import { defineConfig } from 'vite'

export default defineConfig({
  base: '/console/',
  build: {
    outDir: '../src/headwater/console/static',
    emptyOutDir: true,
    sourcemap: false,
    chunkSizeWarningLimit: 8_000, // kB: the editor is one large chunk, and the server gives it away once a release
  },
})
